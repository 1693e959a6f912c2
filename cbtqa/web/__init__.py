"""Pages that are served on this machine: the rating form and the chat.

`guards` is what every request must pass, `server` the entry by link and the process, `pages` the
frame that their templates extend. What a page is about is in the room that serves it.
"""
