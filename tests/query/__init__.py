"""Pure stages by tables of cases, without a database: requests, plans, SQL."""
