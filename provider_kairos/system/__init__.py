"""Effects on the machine: files, init systems, links and addresses, the TUN device, the machine's identity.

Everything here is imported from its own module; this file stays empty so that a plugin event that needs one
function does not pay for all of them.
"""
