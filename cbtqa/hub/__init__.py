"""Publishing to the Hugging Face Hub, and putting withheld question text back.

`dataset` and `model` turn a finished run into a `plan.PublishPlan`: every file that would leave,
already written to disk. `scan` reads all of it and refuses what must not leave; `publish` shows it
as a page. Only then does `upload` talk to the Hub, through `client`, in an order in which nothing
is ever public. `release` makes a repository public, `join` puts question text back from the user's
own file.
"""
