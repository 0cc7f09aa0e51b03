"""The faces: the command line, the web pages and the demo. They ask `service` and say what it answers."""
