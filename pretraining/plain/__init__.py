"""CADS written plainly: page one for whoever wants to understand or change the method. Read in this order:

1. `loader`: from a CT volume to two CT views and an X-ray view (CADS method, sections 1.3 and 2);
2. `model`: the encoder for CT and X-rays, the projection heads, student and teacher (sections 3 and 4);
3. `step`: loss, center, schedules, clipping, AdamW and the teacher's average: one training step (sections 4 and 5);
4. `train`: the loop around it, from a store to an encoder file. ``cads_pretrain --plain`` runs it.

Paper: Ye, Zhang, Chen, Xia, IEEE TMI 44(1):118-129, 2025. Each line does what a sentence of the paper says, with
PyTorch's and batchgenerators' own operations and no thought of speed. `pretraining.views` and `pretraining.method`
compute the same, fast; nothing here imports them, so that tests can compare the two.
"""
