"""What runs below everything: processes, Ray, shared files, resume, timings."""
