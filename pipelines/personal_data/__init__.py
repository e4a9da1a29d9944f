"""What is done about personal data that has landed: people erased, a stricter policy applied, old rows removed."""
