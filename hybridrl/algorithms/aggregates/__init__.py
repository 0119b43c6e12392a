"""How a column of token losses becomes one number, one file each; denominators count the whole minibatch."""
