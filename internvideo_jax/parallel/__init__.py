"""Device meshes, logical-axis rules, sharded initialisation, and compilation for absent devices."""
