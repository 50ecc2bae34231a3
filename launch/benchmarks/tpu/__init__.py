"""Attention on TPUs as their compiler sees it, on a machine without one."""
