"""WHAT each operator is: checks with their messages, shapes, autograd, autocast; no kernel."""
