from tests.obs.log_capture import _logging_as_before

__all__ = ["_logging_as_before"]
