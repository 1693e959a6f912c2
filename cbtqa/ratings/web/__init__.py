"""The web form: raters open a personal link and rate by mouse, touch or keyboard.

`app` holds the routes and what the templates are given; guard, links and process are those of
`cbtqa.web`. Nothing here keeps state: all of it is in `ratings.store`.
"""
