"""Boxes: programs that nobody trusts, run without network, foreign files, or a way to other processes.

`open_sandbox` (places.py) gives boxes, each of which serves one episode or one answer. A box is made with
bubblewrap where the machine allows user namespaces or gives root its capabilities, else with Landlock.
`inside` is the code that runs in a box; it imports the standard library alone.
"""
