"""What tests of every kind share: real servers, a TCP proxy that fails on command, an oracle."""
