"""The floor every folder stands on: errors, commands, files, pictures, padding, metrics. Imports no other folder."""
