"""What ``ghost-ops bench`` and ``ghost-ops verify`` run: cases, peers, interleaved timing, roofline, reports."""
