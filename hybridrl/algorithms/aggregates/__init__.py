"""How a column of token losses becomes one number, one file each; denominators are of the whole minibatch."""
