"""The problems of a race: a function a file, of the file's name, makes its contest."""
