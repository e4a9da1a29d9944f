"""Commands that change nothing: check, plan, status, verify."""
