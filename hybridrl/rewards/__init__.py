"""Rewards: rules by file name, functions of the user by dotted path; every scorer runs in a process that
can be killed.

A reward is called as reward(answer, row, answer_field=..., **options) and returns a number, or a mapping
with the key "reward" and named parts. A reward that is a class is made once with the options and then called
with the other arguments.
"""
