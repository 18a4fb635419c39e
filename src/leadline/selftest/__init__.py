"""The known answers of docs/measurement.md section 8, as problems whose truth is planted and as a table that can be run
on any machine (`leadline doctor --self-test`). The tests plant the same problems.
"""
