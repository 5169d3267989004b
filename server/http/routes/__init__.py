"""The resources of the API, one module for each. A route parses the request, calls the stages and answers.

Nothing but `server/app.py` imports a route.
"""
