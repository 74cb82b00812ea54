"""A multi-tenant issue tracker: the example of how a service is built on svc-infra.

- `app`: the whole service, one line for each capability
- `models`: its tables · `migrations`: how they came to be
- `routes`: organisations, projects, tickets, imports
- `imports`: reading a CSV file of tickets, and the job that stores it
- `demo`: an account and data to look at
"""
