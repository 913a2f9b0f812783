"""Where people train: onepass behind the interfaces of other libraries.

Each module here imports its library, and nothing else imports them: ``import onepass.integrations.torch``.
"""
