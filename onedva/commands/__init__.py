"""What the verbs of `onedva …` do, one concept per file; onedva/cli.py holds their options and imports each when it
is called."""
