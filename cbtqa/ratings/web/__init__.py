"""The web form: raters open a personal link and rate by mouse, touch or keyboard.

`app` holds the routes, `guards` what every request must pass, `pages` what the templates are
given, `server` the process. Nothing here keeps state: all of it is in `ratings.store`.
"""
