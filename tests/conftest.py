from helpers import process


def pytest_sessionfinish() -> None:
    process.stop_server()
