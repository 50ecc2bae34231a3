"""Search of videos by words: an index of embedded windows on disk, and what is nearest to a query.

`updating` makes and extends an index, `nearest` looks into it, `moments` says what was found where.
"""
