"""The mesh: a libp2p node that carries the ledger room and packet streams (spec/edgevpn.md 4, 6, 7, 8.1).

The only package that touches py-libp2p, and only through :mod:`provider_kairos.mesh.parts`, so that importing this
package costs nothing until a mesh is made. The door is :class:`provider_kairos.mesh.node.Mesh`.
"""
