"""The status server of one worker: JSON, metrics and a plain first page, on Quart-Trio and Hypercorn.

`server` listens, `connections` serves, `app` has the endpoints, `views` and `overview` what they show, `access` who may
see payloads.
"""
