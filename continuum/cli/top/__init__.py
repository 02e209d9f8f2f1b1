"""`continuum top`: the queue, live, on the whole screen.

screen.py      the Trio tasks: what is asked of the database, keys, signals; and the screen itself
board.py       what is known, and what the person at the keyboard chose: plain values, changed in one place each
drawing.py     from a board to lines of text, for a screen of any size
keyboard.py    keys from a terminal, without threads
"""
