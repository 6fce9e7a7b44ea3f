"""The floor every folder stands on: errors, command lines, files, pictures, padding and
metrics. Imports none of the others."""
