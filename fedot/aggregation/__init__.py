"""How updates of a cohort become one."""
