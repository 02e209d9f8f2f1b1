"""The status server of one worker: JSON, metrics and the dashboard, on Quart-Trio and Hypercorn.

`server` listens, `connections` serves, `app` puts the endpoints together. Machines are shown `views` and `overview`. People have
`pages` to look at and `actions` to take; `board` and `task_page` are what they see, `words` and `charts` say and draw it, `live`
keeps it true. Who may see and do what: `access`, `sessions`, `viewer`.
"""
