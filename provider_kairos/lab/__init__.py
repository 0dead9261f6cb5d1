"""The lab: a cluster of boxes on one machine, made of namespaces (design.md 7, spec/k3s.md 10).

A box holds the product unmodified, with its real paths; this package plays what a Kairos image has around
it: the kernel's boot (:mod:`.shim`, :mod:`.rootfs`), the service manager (:mod:`.init`, ``systemctl``), the
Kairos agent (:mod:`.agent`) and the cable between the machines (:mod:`.net`). A supervisor process owns
everything; when it goes, by whatever death, everything goes with it. Nothing here is imported by the product.
"""
