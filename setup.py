"""Puts the top-level folders kernels/, configs/ and launch/ into the package."""

from setuptools import find_packages, setup

packages = find_packages(include=["internvideo_jax", "internvideo_jax.*"])
package_dir = {}
for folder in ("kernels", "configs", "launch"):
    package_dir[f"internvideo_jax.{folder}"] = folder
    packages += [
        f"internvideo_jax.{name}" for name in find_packages(include=[folder, f"{folder}.*"])
    ]
setup(packages=packages, package_dir=package_dir)
