"""The resources of the API, one module each. A route parses the request, calls the stages and answers.

Nothing but `server/app.py` imports a route. What several routes need is in a module of `server/http/`.
"""
