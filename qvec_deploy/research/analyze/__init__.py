"""How a donor's vector lies to the receiver's own, for those who have the receiver's own QAT to compare with."""
