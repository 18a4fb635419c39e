"""Ways out of leadline: trained solutions as files that other tools read. One format a file; `export` chooses.

Nothing here measures, and nothing in leadline needs it.
"""

NOTE = "leadline.json"  # in every exported folder: what it is, and how it is used
