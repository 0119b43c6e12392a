"""One model table a file. Adding a family: write its file here and name its architecture in it; nothing else changes."""
