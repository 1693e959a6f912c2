"""Crisis screen, answer check, personal data, hotlines and required notices.

`screen` grades a text, `answers` checks a reply, `personal_data` masks what identifies people,
`hotlines` and `notices` hold dated wording that cards, forms, reports and the chat share. What
people declare (rules, numbers, wording) is YAML beside the code.
"""
