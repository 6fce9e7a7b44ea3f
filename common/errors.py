"""Errors that are meant for the user.

Each is raised where the fault is known, with one line that says what was expected, what was found and what to do;
`common.cli.run` prints that line and exits with code 2. Anything else that escapes is a defect of ours and keeps
its traceback.
"""


class SadnetError(Exception):
    """Base of all errors whose text is written for the user."""


class InputError(SadnetError):
    """A file, folder or option given by the user is not what is expected."""


class ModelError(SadnetError):
    """A weights, ONNX or plan file cannot be read, or holds another network."""


class OutputError(SadnetError):
    """A result cannot be written: it exists already, the disk is full, the folder is read-only."""


class TakenError(OutputError):
    """What stands where a result is to be written is to stay."""


class DependencyError(SadnetError):
    """A package that this command needs is missing or unusable; the text names the install command."""


class TrainingError(SadnetError):
    """Training cannot go on: no data, a loss that is not finite, a checkpoint of another run."""
