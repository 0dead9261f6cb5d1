"""The command line: ``kairos-p2p``, and the dispatch of the plugin's events."""
