"""One file a verb of the command line: reads the folders of earlier verbs, writes its own."""
