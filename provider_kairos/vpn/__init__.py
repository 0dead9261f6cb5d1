"""The VPN without IO: address lease, routes, packet guard, framing and the seam of the fast data plane."""
