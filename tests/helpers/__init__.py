"""The helpers that tests of several files share: no test file imports another one."""
