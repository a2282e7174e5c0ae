"""What can happen to a program while it works: killed, interrupted, a full disk, a failing disk, no power.

`make torture` does it all at length and prints counts; the tests here are short forms of it.
"""
