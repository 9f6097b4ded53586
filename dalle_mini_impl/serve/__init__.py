"""`dalle serve`: OpenAI's images API over HTTP (extra: serve).

`server` binds the socket and runs; `app` has the routes; `guard` stands before them: keys, limits, metrics. `fields`
says what a request may contain, `uploads` reads its pictures, `drawing` turns it into work for the `engine`, whose one
thread draws the candidates of all clients together, `decoding` makes pixels of them, and `answers` makes JSON and
events of what it returns; `picture_files` keeps the pictures that answers refer to by address.
"""
