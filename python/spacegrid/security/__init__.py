"""Who may do what: roles, tokens, certificates, and the table of every call.

`access` has the table, `tokens` keeps salted hashes in a file, `authority` issues certificates,
`files` reads what a node or a client is given and reads it again when it has changed. Nothing here
opens a socket: the transports and the node's front put it to use.
"""
