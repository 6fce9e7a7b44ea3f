"""The floor every folder stands on: errors, command lines, files, pictures and padding. Imports none of the others."""
