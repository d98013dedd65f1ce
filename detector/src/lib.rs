#![no_std]
#![doc = "."]
