"""Judges outside the scoring processes: services over HTTP, and engines of the run.

They are asked before the rules score an answer. Their reply is put into the row under one reserved column,
where the rule that asked for it (rewards/rules/http.py, judge.py) reads it in its scoring process.
"""
