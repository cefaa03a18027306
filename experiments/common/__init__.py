"""What the scripts share: the command line, configurations, runs and their folders, tables and figures."""
